#include "../Native/model.h"
